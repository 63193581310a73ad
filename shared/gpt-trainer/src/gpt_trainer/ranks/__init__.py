"""Several processes that train one model: who each is, what they agree on, how losing one ends all."""
