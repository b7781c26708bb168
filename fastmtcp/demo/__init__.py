"""What `fastmtcp demo` and `fastmtcp throttle` run."""
