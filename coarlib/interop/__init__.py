"""Reading and writing other projects' files, and their call signatures."""
