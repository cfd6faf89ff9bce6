"""How a run goes. Verbs (prepare, train, plan …) assemble; nouns (data, training, tracking) do one job each."""
