"""Count faults over many random cases: kills, damage, swapped bundles, hostile files, interleavings, growth."""
