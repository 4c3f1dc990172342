"""stand-in"""


class Advisor:
    def __init__(self, ms):
        pass

    def step(self, loss, clipped):
        pass

    def round(self, loss, losses):
        return None
