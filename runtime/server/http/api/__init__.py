"""The HTTP interface: routes, the fields they take, and the answers they give."""
