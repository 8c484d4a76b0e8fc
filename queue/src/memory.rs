//! How much memory the process may have, where the system gives it less than the machine has: a container, or a unit of systemd's.

use std::path::Path;

/// What the kernel ends the process at, by its control groups of either version; `None` where nothing is set.
pub fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_of(&groups, Path::new("/sys/fs/cgroup"))
}

/// Of `wanted` octets as many as may be: an eighth of the `limit` at the most, 8 MiB at the least. Some of it is there twice at times, and the
/// relay's sessions and the kernel's page cache want their part.
pub fn part(limit: Option<u64>, wanted: u64) -> u64 {
    let most = limit.map_or(u64::MAX, |limit| limit / 8);
    wanted.min(most.max(8 << 20))
}

/// The same of what the process has.
pub(crate) fn within_memory(wanted: usize) -> usize {
    usize::try_from(part(limit(), wanted as u64)).unwrap_or(wanted)
}

/// A line is `number:controllers:path`; version 2 has neither number nor controllers. Limits of the groups above hold too. In a
/// container the path may be one of the host's, and the container's own group is at the top.
fn limit_of(groups: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (top, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let own = top.join(path.trim_start_matches('/'));
        let groups = own.ancestors().take_while(|group| group.starts_with(&top));
        for group in groups {
            let set = std::fs::read_to_string(group.join(file)).ok();
            // Version 2 says `max` where there is none, version 1 a number beyond all memory.
            let set = set.and_then(|text| text.trim().parse::<u64>().ok());
            least = set.filter(|&set| set < 1 << 60).into_iter().chain(least).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, path: &str, file: &str, text: &str) {
        let group = root.join(path);
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join(file), text).unwrap();
    }

    #[test]
    fn the_least_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        group(
            root,
            "memory/a/b",
            "memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        group(root, "memory/a", "memory.limit_in_bytes", "300\n");
        group(root, "memory", "memory.limit_in_bytes", "400\n");
        assert_eq!(limit_of("5:cpu:/x\n4:memory:/a/b\n", root), Some(300));
        assert_eq!(
            limit_of("4:memory:/of/the/host\n", root),
            Some(400),
            "in a container"
        );
        assert_eq!(limit_of("4:cpu:/a\n", root), None);
        assert_eq!(limit_of("nonsense", root), None);
    }

    #[test]
    fn no_part_is_more_than_an_eighth_or_than_is_wanted() {
        assert_eq!(part(None, 128 << 20), 128 << 20);
        assert_eq!(part(Some(256 << 20), 128 << 20), 32 << 20);
        assert_eq!(part(Some(16 << 20), 128 << 20), 8 << 20);
        assert_eq!(part(Some(16 << 20), 1 << 20), 1 << 20);
    }

    #[test]
    fn so_does_version_2() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        group(root, "a/b", "memory.max", "max\n");
        group(root, "a", "memory.max", "268435456\n");
        assert_eq!(limit_of("0::/a/b\n", root), Some(256 << 20));
        assert_eq!(limit_of("0::/\n", root), None);
    }
}
