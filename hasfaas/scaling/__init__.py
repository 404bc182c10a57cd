"""Scaling: from what is asked and what a slice can do to the allocations that hold every SLO at the least cost."""
