"""The kubectl plugin ``kubectl tonnage``: shows the state of models, nodes and pods, with the rights of its user."""
