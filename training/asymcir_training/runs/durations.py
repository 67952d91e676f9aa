"""Durations in words."""


def describe_time(seconds: float) -> str:
    """Say a time as people do: 42 s, 7 min 5 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"
