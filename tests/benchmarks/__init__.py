"""The routing benchmark: what a record costs, beside other ways to do the same work. See README.md."""
