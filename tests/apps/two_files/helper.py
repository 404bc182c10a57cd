def describe(x):
    return f"it is {x}"
