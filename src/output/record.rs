//! What this program writes about its own writing: a run in progress, and the secrets.
//!
//! A record that cannot be read counts as none. Then files of unknown content are refused, and
//! nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::is_inside;
use crate::bundle::{Bundle, Entry, MANIFEST, Subject, sha256};

const FORMAT: u32 = 1;

/// A run that has begun and not ended. Without secrets, and without their digests.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Record {
    format: u32,
    /// The environments whose bundles may be there, because such runs were permitted to begin.
    pub environments: BTreeSet<String>,
    /// Such a run was permitted to drop the host.
    pub drops_host: bool,
    /// The SHA-256 of the manifest that the run writes at its end.
    pub manifest: String,
    /// Every SHA-256 that we wrote to a path, or are about to write.
    pub files: BTreeMap<String, BTreeSet<String>>,
}

impl Record {
    pub fn read(content: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(content)
            .ok()
            .filter(|record| record.format == FORMAT && record.files.keys().all(is_inside))
    }

    pub fn has(&self, path: &str, digest: &str) -> bool {
        (self.files.get(path)).is_some_and(|digests| digests.contains(digest))
    }

    /// The record of a run that writes `bundle`, with everything that earlier runs may have left.
    pub fn next(
        earlier: Option<&Self>,
        old: Option<&BTreeMap<String, Entry>>,
        bundle: &Bundle,
    ) -> Self {
        let mut files = earlier.map_or_else(BTreeMap::new, |record| record.files.clone());
        for (path, entry) in old.into_iter().flatten().chain(&bundle.entries) {
            let digests: &mut BTreeSet<String> = files.entry(path.clone()).or_default();
            digests.insert(entry.sha256.clone());
        }
        let manifest = (bundle.files.get(MANIFEST)).map(|file| sha256(&file.content));
        let manifest = manifest.unwrap_or_default();
        files
            .entry(MANIFEST.to_owned())
            .or_default()
            .insert(manifest.clone());
        Self {
            format: FORMAT,
            environments: earlier.map_or_else(BTreeSet::new, |record| record.environments.clone()),
            drops_host: earlier.is_some_and(|record| record.drops_host),
            manifest,
            files,
        }
    }

    /// Notes that a run is permitted to turn the bundle of `old` into one of `new`.
    pub fn permitting(mut self, old: Option<&Subject>, new: &Subject) -> Self {
        let subjects = old.into_iter().chain([new]);
        self.environments
            .extend(subjects.map(|subject| subject.environment.clone()));
        self.drops_host |= new.host.is_empty() && old.is_some_and(|old| !old.host.is_empty());
        self
    }
}

/// `secrets/.written`: the SHA-256 of each secret as this program last wrote it.
///
/// It is as private as the secrets themselves.
#[derive(Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SecretsRecord {
    format: u32,
    /// Of the last run that ended.
    written: BTreeMap<String, BTreeSet<String>>,
    /// Of runs that began since.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pending: BTreeMap<String, BTreeSet<String>>,
}

impl SecretsRecord {
    pub fn read(content: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(content)
            .ok()
            .filter(|record| record.format == FORMAT)
    }

    /// The record after a run that wrote these secrets.
    pub fn complete(secrets: &BTreeMap<&'static str, String>) -> Self {
        let secrets = secrets.iter();
        Self {
            format: FORMAT,
            written: secrets
                .map(|(name, digest)| ((*name).to_owned(), BTreeSet::from([digest.clone()])))
                .collect(),
            pending: BTreeMap::new(),
        }
    }

    /// The record before a run that is about to write these secrets.
    pub fn starting(&self, secrets: &BTreeMap<&'static str, String>) -> Self {
        let mut pending = self.pending.clone();
        for (name, digest) in secrets {
            let digests: &mut BTreeSet<String> = pending.entry((*name).to_owned()).or_default();
            digests.insert(digest.clone());
        }
        Self {
            format: FORMAT,
            written: self.written.clone(),
            pending,
        }
    }

    /// Counts what was about to be written as written.
    pub fn settle(&mut self) {
        for (name, digests) in std::mem::take(&mut self.pending) {
            self.written.entry(name).or_default().extend(digests);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.pending.is_empty()
    }

    /// Whether this program wrote that secret.
    pub fn has(&self, name: &str, digest: &str) -> bool {
        [&self.written, &self.pending]
            .into_iter()
            .any(|digests| (digests.get(name)).is_some_and(|digests| digests.contains(digest)))
    }

    /// Whether only a run that was cut short wrote a secret of that name.
    pub fn is_only_pending(&self, name: &str, digest: &str) -> bool {
        !self.written.contains_key(name) && self.has(name, digest)
    }
}
