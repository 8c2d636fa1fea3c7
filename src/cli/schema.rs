//! `outrigger schema`: the JSON Schema of the file, or of a control file, for editors and CI.

use std::io::Write;
use std::process::ExitCode;

use crate::config::schema;

/// Prints it. Exit codes: 0 printed, 1 the output could not be written.
pub fn run(control_file: bool, out: &mut dyn Write) -> ExitCode {
    let schema = if control_file { schema::control_file() } else { schema::configuration() };
    match writeln!(out, "{schema:#}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
