"""Planning: compiles an experiment's programs for TPUs that are not there, and says whether they fit and what binds."""
