//! What the machine adds to the file: the CPU quota and whether there is IPv6. Gathered once, then only handed on.

use std::borrow::Cow;
use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::path::Path;

/// What the machine adds to the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The CPUs that the control group may use; `None` without a quota.
    pub cpu_quota: Option<f64>,
    /// Whether an IPv6 address can be bound.
    pub ipv6: bool,
}

impl Facts {
    /// A machine with IPv6 and without a quota; the reference is written for it.
    pub const PLAIN: Self = Self { cpu_quota: None, ipv6: true };

    /// Asks the machine.
    pub fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        Self { cpu_quota: cpu_quota(&read), ipv6: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() }
    }

    /// Data threads where the file does not say: the quota in whole CPUs, at least one; one without a quota.
    pub fn workers(&self) -> Cow<'static, str> {
        let whole = self.cpu_quota.map_or(1, |quota| quota.clamp(1.0, 1024.0) as u64);
        whole.max(1).to_string().into()
    }

    /// Where the inbound door listens where the file does not say: on both families, or the one there is.
    pub fn inbound(&self) -> Cow<'static, str> {
        if self.ipv6 { "\"[::]:15006\"".into() } else { "0.0.0.0:15006".into() }
    }

    /// Where the outbound door listens where the file does not say: on loopback only.
    pub fn outbound(&self) -> Cow<'static, str> {
        if self.ipv6 { "[127.0.0.1:15001, \"[::1]:15001\"]".into() } else { "127.0.0.1:15001".into() }
    }
}

/// The smallest quota from this process's control group up to the root, version 2 or 1.
fn cpu_quota(read: &dyn Fn(&str) -> Option<String>) -> Option<f64> {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let of = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    let unified = groups.lines().find(|line| line.starts_with("0::")).and_then(of).unwrap_or_else(|| "/".into());
    let controls = |line: &&str| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == "cpu"));
    let legacy = groups.lines().find(controls).and_then(of).unwrap_or_else(|| "/".into());
    let v2 = upwards(&unified).filter_map(|group| v2_quota(&read(&format!("/sys/fs/cgroup{group}/cpu.max"))?));
    let v1 = upwards(&legacy).filter_map(|group| {
        let number = |name: &str| read(&format!("/sys/fs/cgroup/cpu{group}/{name}"))?.trim().parse::<f64>().ok();
        quota(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
    });
    v2.chain(v1).min_by(f64::total_cmp)
}

/// A control group and all above it, without a slash at the end.
fn upwards(group: &str) -> impl Iterator<Item = String> {
    let own = Path::new(group).ancestors().map(|path| path.to_string_lossy().trim_end_matches('/').to_owned());
    own.collect::<Vec<_>>().into_iter()
}

/// `cpu.max` of version 2: `max 100000` or `150000 100000`.
fn v2_quota(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace().map(str::parse::<f64>);
    quota(words.next()?.ok()?, words.next()?.ok()?)
}

fn quota(share: f64, period: f64) -> Option<f64> {
    (share > 0.0 && period > 0.0).then(|| share / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota_with(files: &[(&str, &str)]) -> Option<f64> {
        cpu_quota(&|path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        assert_eq!(quota_with(&[]), None);
        assert_eq!(quota_with(&[("/sys/fs/cgroup/cpu.max", "max 100000\n")]), None);
        assert_eq!(quota_with(&[("/sys/fs/cgroup/cpu.max", "150000 100000\n")]), Some(1.5));
        let nested = [
            ("/proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("/sys/fs/cgroup/a.slice/b.service/cpu.max", "400000 100000"),
            ("/sys/fs/cgroup/a.slice/cpu.max", "200000 100000"),
        ];
        assert_eq!(quota_with(&nested), Some(2.0));
        let legacy = [
            ("/proc/self/cgroup", "4:cpu,cpuacct:/docker/x\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ];
        assert_eq!(quota_with(&legacy), Some(0.5));
        let unlimited =
            [("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1"), ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")];
        assert_eq!(quota_with(&unlimited), None);
    }

    #[test]
    fn workers_are_whole_cpus_and_at_least_one() {
        for (cpu_quota, expect) in [
            (None, "1"),
            (Some(0.3), "1"),
            (Some(1.9), "1"),
            (Some(4.0), "4"),
            (Some(1e9), "1024"),
            (Some(f64::NAN), "1"),
        ] {
            assert_eq!(Facts { cpu_quota, ipv6: true }.workers(), expect, "{cpu_quota:?}");
        }
    }
}
