"""Token entropy, semantic entropy and coherence of every neuron, from bundles alone: `measure` does all of it."""
