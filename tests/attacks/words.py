"""Options that tests of the attack command share."""

FEW = ("--attacker=lightning_rs.attacks.Attacker", "--attacker.n=2000", "--attacker.screen=100", "--attacker.rounds=1")
