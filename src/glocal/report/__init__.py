"""Pictures of what training sees and of what a model has learnt."""
