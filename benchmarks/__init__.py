"""Measurements that print figures and say whether they are good enough; not part of the installed package."""
