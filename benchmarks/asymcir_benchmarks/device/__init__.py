"""What a query costs on the device: time on this machine, instructions on an emulated ARM machine, parameters and MACs.

Modules that write models need torch; none is imported here.
"""
