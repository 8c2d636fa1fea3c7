//! What becomes the app: joins what was made for it, then starts the app in its own place, so that the app has its
//! process id and none of what this step was allowed to do.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, capability_is_in_bounding_set, move_into_link_name_space,
    remove_capability_from_bounding_set,
};

use crate::control::child::{StartError, hand_nothing_on};

/// What the app is put into.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Place {
    /// The namespaces of this process, which holds them.
    #[arg(long)]
    pub holder: Option<u32>,
    /// A control group, by its folder.
    #[arg(long)]
    pub group: Option<PathBuf>,
}

/// Becomes `command`; what is returned is the exit code where that is not possible.
pub fn launch(place: &Place, command: &[OsString]) -> ExitCode {
    if let Err(why) = enter(place) {
        eprintln!("outrigger: cannot start the app behind the rules: {why}");
        return ExitCode::from(StartError::Empty.exit_code());
    }
    let Some((program, arguments)) = command.split_first() else {
        eprintln!("outrigger: {}", StartError::Empty);
        return ExitCode::from(StartError::Empty.exit_code());
    };
    let source = Command::new(program).args(arguments).exec();
    let error = StartError::of(program, source);
    eprintln!("outrigger: {error}");
    ExitCode::from(error.exit_code())
}

fn enter(place: &Place) -> Result<(), String> {
    match (place.holder, &place.group) {
        (Some(holder), _) => namespaces(holder).map_err(|error| format!("its network cannot be joined: {error}"))?,
        (None, Some(group)) => join(group).map_err(|error| format!("{}: {error}", group.display()))?,
        (None, None) => {}
    }
    // Not before: to join may have taken one of them. An app that had them could take its rules away.
    hand_nothing_on().map_err(|error| format!("it would have the sidecar's capabilities: {}", io::Error::from(error)))
}

/// The user namespace first: it is what gives the right to the other. It also gives all capabilities over it, and lets
/// programs gain all: no more of them than before, or files with capabilities would give what the sidecar never had.
fn namespaces(holder: u32) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{holder}/ns/{name}"));
    let (user, network) = (open("user")?, open("net")?);
    // Those that the kernel does not know are in no set.
    let may_gain = |capability: &CapabilitySet| capability_is_in_bounding_set(*capability).unwrap_or(false);
    let all = || (0..u64::BITS).map(|at| CapabilitySet::from_bits_retain(1 << at));
    let before: Vec<CapabilitySet> = all().filter(may_gain).collect();
    move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    for capability in all().filter(may_gain).filter(|capability| !before.contains(capability)) {
        remove_capability_from_bounding_set(capability)?;
    }
    Ok(())
}

fn join(group: &Path) -> io::Result<()> {
    // 0 stands for the writer.
    fs::write(group.join("cgroup.procs"), "0")
}
