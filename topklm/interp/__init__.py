"""Reading the neurons of a model: the statistics pass."""
