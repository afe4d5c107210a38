"""Pure computations: arguments in, values out. No Flask, no database, no settings, no clock."""
