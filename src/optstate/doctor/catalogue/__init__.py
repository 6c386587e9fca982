"""Every code that a diagnosis can have, as data: what it is, why it happens, what it does, what helps."""
