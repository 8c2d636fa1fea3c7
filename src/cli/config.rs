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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_a_file_that_is_fine_and_prints_the_same() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/full.yaml");
        let print = |path: &Path| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = run(path, &Facts::PLAIN, &|_| None, &mut out, &mut err);
            assert_eq!((code, String::from_utf8(err).unwrap()), (ExitCode::SUCCESS, String::new()));
            let text = String::from_utf8(out).unwrap();
            text.lines().map(|line| line.split(" # ").next().unwrap().trim_end().to_owned() + "\n").collect::<String>()
        };
        let first = print(Path::new(path));
        let copy = std::env::temp_dir().join(format!("outrigger-config-{}.yaml", std::process::id()));
        std::fs::write(&copy, &first).unwrap();
        let second = print(&copy);
        std::fs::remove_file(&copy).unwrap();
        assert_eq!(first, second);
    }
}
