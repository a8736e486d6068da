"""What people type and see: names to complete, completion scripts, help, advice on wrong usage, previews."""
