//! Ten thousand clusters, powered on in the worst order, with packets lost, power cut and the daemon killed at each gate: all
//! end ready, and no config ever leaves before its turn. What would have died on the way panics in `tests/src/fleet.rs`.

use ignition::platform::Platform;
use netboot::cluster::Role;
use tests::fleet::Fleet;

fn all_come_up(platform: Platform, seeds: std::ops::Range<u64>) {
    let mut gates = 0;
    for seed in seeds {
        let mut fleet = Fleet::new(platform, 3, seed);
        fleet.comes_up(&format!("{platform}, seed {seed}"));
        let workers = fleet
            .released()
            .iter()
            .filter(|(role, _)| *role == Role::Worker);
        assert!(
            workers.count() >= 3,
            "{platform}, seed {seed}: {:?}",
            fleet.released()
        );
        gates += fleet.gates();
    }
    assert!(gates > 0, "the daemon was never killed at a gate");
}

#[test]
fn okd_clusters_come_up_in_order_whatever_happens() {
    all_come_up(Platform::Okd, 0..3400);
}

#[test]
fn talos_clusters_come_up_in_order_whatever_happens() {
    all_come_up(Platform::Talos, 10_000..13_300);
}

#[test]
fn k3s_clusters_come_up_in_order_whatever_happens() {
    all_come_up(Platform::K3s, 20_000..23_300);
}

#[test]
fn agents_of_k3s_join_fifty_at_a_time() {
    let mut fleet = Fleet::new(Platform::K3s, 120, 7);
    fleet.comes_up("a large fleet");
    let ranks: Vec<usize> = fleet
        .released()
        .iter()
        .filter(|(role, _)| *role == Role::Worker)
        .map(|(_, rank)| *rank)
        .collect();
    let first = |rank: usize| ranks.iter().position(|released| *released == rank);
    let last_of_first = (0..50).filter_map(first).max();
    let first_of_second = (50..100).filter_map(first).min();
    assert!(last_of_first < first_of_second, "{ranks:?}");
}
