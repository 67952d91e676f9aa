"""A load generator for retrieval servers, with open-loop arrivals, and how users search today, to measure beside."""
