"""What resilmesh costs, beside other libraries and beside nothing at all. Run with ``make bench``."""
