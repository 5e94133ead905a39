"""What every party must compute identically: digests, trees, statements and their verification. No I/O."""
