//! The depot: boot artefacts on disk, named by digest, never changed in place.
