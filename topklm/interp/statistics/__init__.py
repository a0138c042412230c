"""The pass that collects what every neuron does over a corpus, into a bundle: `collection` is where it begins."""
