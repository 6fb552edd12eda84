"""Environments of gymnasium, for methods that act; importing this package registers them (extra ``control``).

``ssl_suite/PointReach-v0``     a point is to be brought onto a goal, seen in small grey pictures
"""

from ssl_suite.config import require

gymnasium = require("gymnasium", "control")
gymnasium.register("ssl_suite/PointReach-v0", "ssl_suite.environments.point_reach:PointReach", max_episode_steps=30)
