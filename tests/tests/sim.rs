//! A million steps of machines that lose packets, power and patience, of a bastion that is killed in the
//! middle of its work, and of people who change their minds. The promises are checked after each step in
//! `tests/src/world.rs`; the seeds are fixed, so a failure names the story that broke one.

use tests::world::{Unkindness, World};

const HARSH: Unkindness = Unkindness {
    loss: 20,
    power_cut: 10,
    kill: 5,
    person: 2,
    thief: 3,
};

#[test]
fn the_promises_hold_for_a_million_unkind_steps() {
    let mut running = 0;
    for seed in 0..250 {
        let mut world = World::new(seed, 8, HARSH);
        for _ in 0..4000 {
            world.step();
        }
        running += world.running();
    }
    assert!(running > 0, "nothing ever booted, so nothing was promised");
}

#[test]
fn every_story_ends_running_or_waits_for_a_person() {
    for seed in 1000..1100 {
        let mut world = World::new(seed, 8, HARSH);
        for _ in 0..400 {
            world.step();
        }
        world.becomes_kind();
        let mut patience = 4000;
        while !world.unfinished().is_empty() {
            world.step();
            patience -= 1;
            assert!(patience > 0, "seed {seed}: {:?}", world.unfinished());
        }
    }
}

#[test]
fn in_a_kind_world_every_listed_machine_runs() {
    let kind = Unkindness {
        loss: 0,
        power_cut: 0,
        kill: 0,
        person: 0,
        thief: 0,
    };
    let mut world = World::new(7, 8, kind);
    for _ in 0..2000 {
        world.step();
    }
    assert_eq!(world.running(), 8);
}
