"""Terms in which the student predicts the teacher's distribution over prototypes."""
