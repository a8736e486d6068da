"""Ray: the server as an application of Ray Serve. Importing this folder's modules does not import Ray."""
