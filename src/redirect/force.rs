//! Bringing rules into force and taking them away: all or nothing, again and again with the same outcome, and never
//! anything that is somebody else's.
//!
//! The table comes and goes in one batch of the kernel. Policy routing cannot be part of that, and does nothing as long
//! as nobody marks packets: so it comes before the table and goes after it. Whoever is killed in between leaves only
//! entries that carry our number, which the next `apply` or `remove` finds.

use std::fs;
use std::io;

use rustix::io::Errno;

use super::netlink::Netlink;
use super::routing::{self, Entry, What};
use super::rules::{Chain, Routing, Ruleset};
use super::tables::{self, Batch, Refused, Standing};
use super::{TABLE, text};

/// Somebody else changes tables at the same moment: so often it is tried again.
const TRIES: usize = 10;

/// Names that may be taken by others.
const NAMES: usize = 16;

/// What the tables begin with whose rules are held, with their family.
const HELD: &str = "inet outrigger-run-";

/// Takes away what the script for iptables has set.
const UNDO: &str = "outrigger redirect script --iptables --remove -c FILE | sh";

const RESTLESS: &str = "something changes the kernel's tables all the time: nothing was changed; try again";

/// What is in force in this network namespace.
#[derive(Debug)]
pub struct InForce {
    /// Our table's chains; `None` if there is no table of our name.
    pub chains: Option<Vec<Chain>>,
    /// Why the table of our name is not ours, if it is not.
    pub stranger: Option<String>,
    /// Chains of ours in which rules stand that are not of our making.
    pub strange: Vec<String>,
    /// Our policy routing.
    pub routing: Vec<Entry>,
    /// The tables of iptables in which rules of our script for it stand.
    pub script: Vec<String>,
}

/// Whether this network namespace has IPv6: the kernel knows it, and at least one interface is to speak it.
pub fn has_ipv6() -> bool {
    let domain = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
    if domain.is_err() {
        return false;
    }
    // Where there is no such folder to read, it is better to capture too much than too little.
    let Ok(interfaces) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return true };
    let said = interfaces.flatten().filter_map(|interface| fs::read(interface.path().join("disable_ipv6")).ok());
    let off: Vec<bool> = said.map(|text| text.trim_ascii() == b"1").collect();
    off.is_empty() || off.contains(&false)
}

/// Brings rules into force, in place of those of ours that are there. `beside` allows it where others redirect too.
///
/// # Errors
/// A line that says why, and what to do; then all is as it was.
pub fn apply(ruleset: &Ruleset, beside: bool) -> Result<(), String> {
    let mut kernel = open_tables()?;
    let mut added = Vec::new();
    let done = attempt(&mut kernel, ruleset, beside, &mut added);
    match done {
        Ok(()) => drop_routing(|entry| !routing::wanted(ruleset.routing).contains(entry)),
        Err(why) => {
            let _ = drop_routing(|entry| added.contains(entry));
            Err(why)
        }
    }
}

/// The same without undoing the policy routing that was added for it.
fn attempt(kernel: &mut Netlink, ruleset: &Ruleset, beside: bool, added: &mut Vec<Entry>) -> Result<(), String> {
    for _ in 0..TRIES {
        let standing = Standing::read(kernel).map_err(|error| cannot("read the kernel's tables", &error))?;
        own_table(&standing)?;
        if !beside {
            alone(&standing, "take them away, or say `--beside` where both are meant")?;
        }
        add_routing(ruleset.routing, beside, added)?;
        let mut batch = Batch::begin(kernel.number(), standing.generation);
        if standing.table.is_some() {
            batch.delete_table(false);
        }
        batch.make_table();
        batch.chains(&ruleset.chains);
        match batch.send(kernel) {
            Ok(()) => return Ok(()),
            Err(refused) => again(refused)?,
        }
    }
    Err(RESTLESS.to_owned())
}

/// Rules that are in force as long as this is held, and no longer: the kernel itself takes them away with the socket, however
/// this process ends.
#[derive(Debug)]
pub struct Held {
    _kernel: Netlink,
    /// The table's name.
    pub table: String,
}

/// Whether this process may see and set rules in this network namespace.
///
/// # Errors
/// A line that says why that cannot be told, and what to do.
pub fn is_allowed() -> Result<bool, String> {
    let mut kernel = open_tables()?;
    match Standing::read(&mut kernel) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(cannot("read the kernel's tables", &error)),
    }
}

/// Brings rules into force beside those of others like it, in a table of this name, with a number after it where that is
/// taken: by a process in another container with the same process id. `None` where those of `apply` are there.
///
/// # Errors
/// A line that says why, and what to do; then all is as it was.
pub fn hold(ruleset: &Ruleset, name: &str) -> Result<Option<Held>, String> {
    let mut kernel = open_tables()?;
    let (mut table, mut taken) = (name.to_owned(), 0);
    for _ in 0..TRIES + NAMES {
        let mut standing = Standing::read(&mut kernel).map_err(|error| cannot("read the kernel's tables", &error))?;
        own_table(&standing)?;
        if standing.table.is_some() {
            return Ok(None);
        }
        standing.others.retain(|other| !other.table.starts_with(HELD));
        alone(&standing, "take them away, or set `redirect.app` to `namespace` or `proxy`")?;
        let mut batch = Batch::begin(kernel.number(), standing.generation);
        batch.make_owned_table(&table);
        batch.chains(&ruleset.chains);
        match batch.send(&mut kernel) {
            Ok(()) => return Ok(Some(Held { _kernel: kernel, table })),
            // Whoever may read all tables may make one, unless it is another's.
            Err(Refused { what, error }) if taken < NAMES && what.starts_with("owned table") && is_anothers(&error) => {
                taken += 1;
                table = format!("{name}-{taken}");
            }
            Err(refused) => again(refused)?,
        }
    }
    Err(RESTLESS.to_owned())
}

fn is_anothers(error: &io::Error) -> bool {
    [Errno::EXIST, Errno::PERM].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Takes our rules away; says whether there were any. Those of our script for iptables only a script takes away, and with
/// them the policy routing stays, which may be theirs.
///
/// # Errors
/// A line that says why, and what to do.
pub fn remove() -> Result<bool, String> {
    let mut kernel = open_tables()?;
    let (mut there, mut script) = (false, Vec::new());
    for left in (0..TRIES).rev() {
        let standing = Standing::read(&mut kernel).map_err(|error| cannot("read the kernel's tables", &error))?;
        own_table(&standing)?;
        script = of_script(&standing);
        if standing.table.is_none() {
            break;
        }
        there = true;
        let mut batch = Batch::begin(kernel.number(), standing.generation);
        batch.delete_table(true);
        match batch.send(&mut kernel) {
            Ok(()) => break,
            Err(_) if left == 0 => return Err(RESTLESS.to_owned()),
            Err(refused) => again(refused)?,
        }
    }
    if !script.is_empty() {
        let besides = if there { "the table `inet outrigger` is gone, but " } else { "" };
        return Err(format!("{besides}{}", of_script_words(&script)));
    }
    there |= !own_routing(None)?.is_empty();
    drop_routing(|_| true)?;
    Ok(there)
}

/// What is in force.
///
/// # Errors
/// A line that says why that cannot be seen, and what to do.
pub fn look() -> Result<InForce, String> {
    let mut kernel = open_tables()?;
    let standing = Standing::read(&mut kernel).map_err(|error| cannot("read the kernel's tables", &error))?;
    let (stranger, script) = (standing.stranger(), of_script(&standing));
    Ok(InForce { stranger, chains: standing.table, strange: standing.strange, routing: own_routing(None)?, script })
}

/// The tables in which rules of our script for iptables stand.
fn of_script(standing: &Standing) -> Vec<String> {
    let mut tables: Vec<String> =
        standing.others.iter().filter(|other| other.is_of_our_script()).map(|other| other.table.clone()).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// That they are there, and what takes them away.
pub fn of_script_words(tables: &[String]) -> String {
    let tables = tables.iter().map(|table| format!("`{table}`")).collect::<Vec<_>>().join(", ");
    format!(
        "rules of `outrigger redirect script --iptables` are in force here, in {tables}: `iptables-save` and `ip6tables-save` \
         show them, `{UNDO}` takes them away"
    )
}

/// What iptables-legacy may do here, which cannot be seen by netlink.
pub fn legacy_note() -> Option<String> {
    let used = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|table| table == "nat" || table == "mangle")
    };
    (used("/proc/self/net/ip_tables_names") || used("/proc/self/net/ip6_tables_names")).then(|| {
        "iptables-legacy is in use in this network namespace, and its rules cannot be seen from here: \
         `iptables-legacy-save` shows whether they redirect connections too"
            .to_owned()
    })
}

fn open_tables() -> Result<Netlink, String> {
    tables::open().map_err(|error| cannot("open the kernel's packet filter", &error))
}

/// Refuses a table of our name that somebody else made.
fn own_table(standing: &Standing) -> Result<(), String> {
    match standing.stranger() {
        None => Ok(()),
        Some(why) => Err(format!(
            "the table `inet {TABLE}` was not made by `outrigger redirect` ({why}): nothing was changed; \
             whoever made it must take it away, such as by `nft delete table inet {TABLE}`"
        )),
    }
}

/// Refuses to be a second one that redirects.
fn alone(standing: &Standing, advice: &str) -> Result<(), String> {
    let Some(other) = standing.others.first() else { return Ok(()) };
    if other.is_of_our_script() {
        return Err(format!("{}: nothing was changed", of_script_words(&of_script(standing))));
    }
    let chain = &other.chain;
    let known = [
        ("outrigger-", "an `outrigger run`'s"),
        ("ISTIO", "Istio's"),
        ("PROXY_INIT", "Linkerd's"),
        ("KUMA", "Kuma's"),
        ("CONSUL", "Consul's"),
    ];
    let owner = known.iter().find(|(begin, _)| chain.starts_with(begin)).map_or("somebody else's", |(_, owner)| owner);
    Err(format!(
        "connections are redirected here already, by {owner} rules in table `{}`, chain `{chain}`: nothing was changed; \
         {advice}",
        other.table
    ))
}

/// Nothing where a batch is worth another try, because somebody else was in between.
fn again(refused: Refused) -> Result<(), String> {
    let Refused { what, error } = refused;
    if error.raw_os_error() == Some(Errno::RESTART.raw_os_error()) {
        return Ok(());
    }
    let what = if what.is_empty() { "set rules".to_owned() } else { format!("set `{what}`") };
    Err(cannot(&what, &error))
}

fn own_routing(table: Option<u32>) -> Result<Vec<Entry>, String> {
    Ok(all_routing(table)?.into_iter().filter(|entry| entry.ours).collect())
}

fn all_routing(table: Option<u32>) -> Result<Vec<Entry>, String> {
    let mut kernel = routing::open().map_err(|error| cannot("open the kernel's routing", &error))?;
    routing::read(&mut kernel, table).map_err(|error| cannot("read the kernel's routing", &error))
}

/// Adds what is missing, and notes it.
fn add_routing(wanted: Option<Routing>, beside: bool, added: &mut Vec<Entry>) -> Result<(), String> {
    let Some(routing) = wanted else { return Ok(()) };
    let there = all_routing(Some(routing.mark))?;
    let conflicts = |entry: &&Entry| {
        !entry.ours
            && match entry.what {
                What::Rule { mark, table, .. } => mark == routing.mark || table == routing.mark,
                What::Route { table } => table == routing.mark,
            }
    };
    if let (Some(other), false) = (there.iter().find(conflicts), beside) {
        return Err(format!(
            "`{other}` is somebody else's, and uses the number {}: nothing was changed; \
             set another `redirect.mark` in the file",
            routing.mark
        ));
    }
    let mut kernel = routing::open().map_err(|error| cannot("open the kernel's routing", &error))?;
    for entry in routing::wanted(wanted).into_iter().filter(|entry| !there.contains(entry)) {
        routing::add(&mut kernel, entry).map_err(|error| cannot(&format!("set `{entry}`"), &error))?;
        added.push(entry);
    }
    Ok(())
}

/// Takes away those of ours that are meant, each rule before the route that it leads to.
fn drop_routing(meant: impl Fn(&Entry) -> bool) -> Result<(), String> {
    let mut kernel = routing::open().map_err(|error| cannot("open the kernel's routing", &error))?;
    let mut own: Vec<Entry> = own_routing(None)?.into_iter().filter(|entry| meant(entry)).collect();
    own.sort_by_key(|entry| matches!(entry.what, What::Route { .. }));
    for entry in own {
        routing::delete(&mut kernel, entry).map_err(|error| cannot(&format!("take away `{entry}`"), &error))?;
    }
    Ok(())
}

/// Why the kernel does not do something, and what to do about it.
pub fn cannot(what: &str, error: &io::Error) -> String {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let advice = match errno {
        Some(Errno::PERM | Errno::ACCESS) => {
            "it needs CAP_NET_ADMIN in this network namespace: run it as root, or in an init container with that \
             capability; `outrigger redirect script` prints the rules without any"
        }
        Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOENT) => {
            "the kernel has no nf_tables, or a part of it is missing (`modprobe nf_tables nft_chain_nat nft_redir \
             nft_ct nft_fib_inet nft_tproxy nft_socket` on the host); `outrigger redirect script --iptables | sh` does without"
        }
        Some(Errno::AGAIN) => "something changes the kernel's tables all the time, or it does not answer: try again",
        Some(Errno::NETDOWN | Errno::NODEV) => "the loopback interface is down: `ip link set lo up`",
        Some(Errno::MSGSIZE | Errno::NOBUFS) => {
            "there are too many rules for one step: join ports and networks in the file"
        }
        _ => "nothing was changed",
    };
    format!("cannot {what}: {error}: {advice}")
}

/// The table that is in force, as text for `nft`, and its policy routing as commands of `ip`.
pub fn as_text(in_force: &InForce) -> String {
    let mut out = in_force.chains.as_deref().map(text::table).unwrap_or_default();
    for chain in &in_force.strange {
        out.push_str(&format!(
            "# chain {chain} has a rule that is not Outrigger's; `nft list table inet {TABLE}` shows it\n"
        ));
    }
    for entry in &in_force.routing {
        out.push_str(&format!("# {entry}\n"));
    }
    out
}
