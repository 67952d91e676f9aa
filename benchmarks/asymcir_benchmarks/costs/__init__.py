"""What training and serving cost: time, memory and disk, by model size.

The modules need torch; none is imported here.
"""
