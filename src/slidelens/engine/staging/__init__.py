"""From lesions to the class of a lymph node, and from the nodes of a patient to a pN stage."""
