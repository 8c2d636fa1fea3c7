//! `outrigger config`: every value in force with where it comes from, as a file that `run` would take.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::config::expand::Variables;
use crate::config::facts::Facts;
use crate::config::print::values;
use crate::config::reference;
use crate::control::load::load;

/// Prints them to `out`, or what is wrong to `err`. Exit codes: 0 printed, 1 something is wrong with the file.
pub fn run(path: &Path, facts: &Facts, variables: Variables<'_>, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let written = match load(path, facts, variables) {
        Ok(loaded) => {
            write!(out, "{}", values(&loaded.config, &path.display().to_string())).map(|()| ExitCode::SUCCESS)
        }
        Err(problems) => writeln!(err, "{problems}").map(|()| ExitCode::FAILURE),
    };
    written.unwrap_or(ExitCode::FAILURE)
}

/// `outrigger config --reference`: the file that holds every key at its default, `config/full.yaml`.
pub fn run_reference(out: &mut dyn Write) -> ExitCode {
    match write!(out, "{}", reference::reference()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
