//! Small machines that decide; every method takes `now`, none awaits.
