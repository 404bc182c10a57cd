NUMBER = 2


def shout(text):
    return text.upper()
