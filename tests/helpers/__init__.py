"""What several tests share: models, data, oracles and the damage that is done to them."""
