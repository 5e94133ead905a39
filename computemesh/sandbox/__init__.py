"""Code that strangers wrote, in processes that can be killed: customers' programs, operators' functions."""
