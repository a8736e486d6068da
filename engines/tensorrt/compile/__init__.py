"""Plan the profiles of engines, and compile and check each engine in a child process."""
