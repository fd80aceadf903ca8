//! The steps as each database takes them: the same statements and parameters, with types of their own.

/// The steps that are the same in each database, but for types.
macro_rules! steps {
    () => {
        async fn insert(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            stream: &str,
            rows: Vec<NewRow>,
        ) -> Result<(), Error> {
            if let Some(lock) = &statements.lock {
                let mut keys: Vec<_> = rows.iter().filter_map(|row| row.key.as_deref()).collect();
                keys.sort_unstable();
                keys.dedup();
                if !keys.is_empty() {
                    let keys = ::serde_json::to_string(&keys).unwrap_or_default();
                    let lock = query(lock.clone()).persistent(false).bind(name).bind(keys);
                    lock.execute(&mut *connection).await?;
                }
            }
            let [before, after, end] = &statements.insert;
            let mut insert = QueryBuilder::<Self>::new(before);
            insert.push_values(rows, |mut row, new| {
                row.push_bind(name)
                    .push_bind($crate::sql::outbox::row::FORMAT)
                    .push_bind(&*new.id)
                    .push_bind(stream)
                    .push_bind(new.key.as_deref())
                    .push_bind(new.envelope)
                    .push_bind(new.body);
            });
            insert.push(after);
            if !end.is_empty() {
                insert.push_bind(name).push(end);
            }
            let insert = insert.build().persistent(false);
            insert.execute(connection).await.map(drop)
        }

        async fn look(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> Result<Option<Lease>, Error> {
            let look = query(statements.look.clone()).persistent(false).bind(name);
            let Some(row) = look.fetch_optional(connection).await? else {
                return Ok(None);
            };
            Ok(Some(Lease {
                fence: row.try_get(0)?,
                beat: row.try_get(1)?,
                holder: row.try_get(2)?,
            }))
        }

        async fn enter(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> Result<(), Error> {
            let enter = query(statements.enter.clone()).persistent(false).bind(name);
            enter.execute(connection).await.map(drop)
        }

        async fn take(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            holder: &str,
            found: &Lease,
        ) -> Result<bool, Error> {
            let take = query(statements.take.clone())
                .persistent(false)
                .bind(name)
                .bind(holder)
                .bind(found.fence)
                .bind(found.beat);
            Ok(take.execute(connection).await?.rows_affected() == 1)
        }

        async fn beat(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
        ) -> Result<Option<Option<Begun>>, Error> {
            let beat = query(statements.beat.clone())
                .persistent(false)
                .bind(name)
                .bind(fence);
            let Some(row) = beat.fetch_optional(connection).await? else {
                return Ok(None);
            };
            let batch: Option<String> = row.try_get(0)?;
            let Some(batch) = batch else {
                return Ok(Some(None));
            };
            let sequences = ::serde_json::from_str(&batch);
            Ok(Some(Some(Begun {
                sequences: sequences.map_err(|error| Error::Decode(error.into()))?,
                producer: row.try_get(1)?,
                first: row.try_get(2)?,
            })))
        }

        async fn give_back(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
        ) -> Result<(), Error> {
            let give_back = query(statements.give_back.clone())
                .persistent(false)
                .bind(name)
                .bind(fence);
            give_back.execute(connection).await.map(drop)
        }

        async fn next(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            without: &Without,
            most: i64,
        ) -> Result<Vec<(i64, i64)>, Error> {
            let next = query(statements.next.clone())
                .persistent(false)
                .bind(name)
                .bind(::serde_json::to_string(&without.sequences).unwrap_or_default())
                .bind(::serde_json::to_string(&without.keys).unwrap_or_default())
                .bind(most);
            let rows = next.fetch_all(connection).await?;
            rows.iter()
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                .collect()
        }

        async fn note_batch(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
            batch: Option<&Begun>,
        ) -> Result<(), Error> {
            let Some(batch) = batch else {
                let end = query(statements.end.clone())
                    .persistent(false)
                    .bind(name)
                    .bind(fence);
                return end.execute(connection).await.map(drop);
            };
            let begin = query(statements.begin.clone())
                .persistent(false)
                .bind(name)
                .bind(fence)
                .bind(::serde_json::to_string(&batch.sequences).unwrap_or_default())
                .bind(&batch.producer)
                .bind(batch.first);
            begin.execute(connection).await.map(drop)
        }

        async fn rows(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequences: &[i64],
        ) -> Result<Vec<StoredRow>, Error> {
            let rows = query(statements.rows.clone())
                .persistent(false)
                .bind(name)
                .bind(::serde_json::to_string(sequences).unwrap_or_default());
            rows.fetch_all(connection)
                .await?
                .iter()
                .map(stored)
                .collect()
        }

        async fn delete(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequences: &[i64],
        ) -> Result<(), Error> {
            Self::among(connection, &statements.delete, name, sequences)
                .await
                .map(drop)
        }

        async fn refuse(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequence: i64,
            reason: &str,
            last: bool,
        ) -> Result<(), Error> {
            let statement = if last {
                &statements.kill
            } else {
                &statements.refuse
            };
            let refuse = query(statement.clone())
                .persistent(false)
                .bind(name)
                .bind(sequence)
                .bind(reason);
            refuse.execute(connection).await.map(drop)
        }

        async fn waiting(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> Result<Waiting, Error> {
            let waiting = query(statements.waiting.clone())
                .persistent(false)
                .bind(name);
            let waiting = waiting.fetch_one(&mut *connection).await?;
            let dead = query(statements.dead.clone()).persistent(false).bind(name);
            let dead = dead.fetch_one(connection).await?;
            Ok(Waiting {
                rows: waiting.try_get(0)?,
                oldest_ms: waiting.try_get(1)?,
                dead: dead.try_get(0)?,
            })
        }

        async fn dead_letters(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            most: i64,
        ) -> Result<Vec<DeadRow>, Error> {
            let rows = query(statements.dead_letters.clone())
                .persistent(false)
                .bind(name)
                .bind(most);
            let rows = rows.fetch_all(connection).await?;
            let dead = |row| Ok((stored(row)?, row.try_get(9)?, row.try_get(10)?));
            rows.iter().map(dead).collect()
        }

        async fn among(
            connection: &mut Self::Connection,
            statement: &SqlStr,
            name: &str,
            sequences: &[i64],
        ) -> Result<u64, Error> {
            let statement = query(statement.clone())
                .persistent(false)
                .bind(name)
                .bind(::serde_json::to_string(sequences).unwrap_or_default());
            Ok(statement.execute(connection).await?.rows_affected())
        }
    };
}

/// A function that reads a row.
macro_rules! stored {
    ($row:ty) => {
        fn stored(row: &$row) -> Result<StoredRow, Error> {
            Ok(StoredRow {
                sequence: row.try_get(0)?,
                format: row.try_get(1)?,
                id: row.try_get(2)?,
                stream: row.try_get(3)?,
                key: row.try_get(4)?,
                envelope: row.try_get(5)?,
                body: row.try_get(6)?,
                attempts: row.try_get(7)?,
                created_ms: row.try_get(8)?,
            })
        }
    };
}

pub(super) use {steps, stored};
