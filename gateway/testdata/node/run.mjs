// Prints "ok", or what went wrong.
import assert from 'node:assert/strict'
import pg from 'pg'

const pool = new pg.Pool({ connectionString: process.argv[2], max: 4 })
try {
  const { rows } = await pool.query('SELECT name, $1::int AS n FROM here', [7])
  assert.deepEqual(rows, [{ name: 'source', n: 7 }])

  // Named statements are prepared once on each connection.
  await Promise.all(Array.from({ length: 40 }, async (_, i) => {
    const r = await pool.query({ name: 'plus', text: 'SELECT $1::int + 1 AS n', values: [i] })
    assert.equal(r.rows[0].n, i + 1)
  }))

  await assert.rejects(pool.query('SELECT 1/0'), { code: '22012' })

  const client = await pool.connect()
  try {
    await client.query('BEGIN')
    await client.query("INSERT INTO here VALUES ('node')")
    await assert.rejects(client.query('SELECT nothing'), { code: '42703' })
    await assert.rejects(client.query('SELECT 1'), { code: '25P02' })
    await client.query('ROLLBACK')
    assert.equal((await client.query('SELECT count(*)::int AS n FROM here')).rows[0].n, 1)
    const big = 'x'.repeat(1 << 20)
    assert.equal((await client.query('SELECT $1::text AS v', [big])).rows[0].v, big)
  } finally {
    client.release()
  }
  console.log('ok')
} finally {
  await pool.end()
}
