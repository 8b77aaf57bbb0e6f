"""Jobs: submitted, admitted, announced to workers, watched, and taken back from workers that vanished."""
