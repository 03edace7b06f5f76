"""How a program is played: fused plans, the players of them, and which one a solve takes."""
