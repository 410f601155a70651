-- A music shop in the shape of Chinook, small enough to keep here.
CREATE TABLE artist (artist_id int PRIMARY KEY, name varchar(120));
CREATE TABLE album (album_id int PRIMARY KEY, title varchar(160) NOT NULL, artist_id int NOT NULL);
CREATE TABLE track (
	track_id int PRIMARY KEY,
	name varchar(200) NOT NULL,
	album_id int,
	composer varchar(220),
	milliseconds int NOT NULL,
	bytes int,
	unit_price numeric(10, 2) NOT NULL
);
CREATE TABLE playlist (playlist_id int PRIMARY KEY, name varchar(120));
CREATE TABLE playlist_track (playlist_id int NOT NULL, track_id int NOT NULL, PRIMARY KEY (playlist_id, track_id));
CREATE TABLE employee (employee_id int PRIMARY KEY, last_name varchar(20) NOT NULL, reports_to int, hire_date timestamp);
CREATE TABLE customer (
	customer_id int PRIMARY KEY,
	first_name varchar(40) NOT NULL,
	last_name varchar(20) NOT NULL,
	company varchar(80),
	email varchar(60) NOT NULL,
	support_rep_id int
);
CREATE TABLE invoice (
	invoice_id int PRIMARY KEY,
	customer_id int NOT NULL,
	invoice_date timestamp NOT NULL,
	total numeric(10, 2) NOT NULL
);

INSERT INTO artist SELECT i, 'Artist ' || i || CASE WHEN i % 7 = 0 THEN ' Ünïcode ''quoted''' ELSE '' END FROM generate_series(1, 275) i;
INSERT INTO album SELECT i, 'Album ' || i, 1 + i % 275 FROM generate_series(1, 347) i;
INSERT INTO track
SELECT i, 'Track ' || i, 1 + i % 347, CASE WHEN i % 3 = 0 THEN NULL ELSE 'Composer ' || i % 50 END,
	180000 + i * 13, CASE WHEN i % 11 = 0 THEN NULL ELSE i * 977 END, CASE WHEN i % 5 = 0 THEN 1.99 ELSE 0.99 END
FROM generate_series(1, 3503) i;
INSERT INTO playlist SELECT i, CASE WHEN i = 18 THEN NULL ELSE 'List ' || i END FROM generate_series(1, 18) i;
INSERT INTO playlist_track SELECT 1 + i % 18, 1 + i FROM generate_series(0, 3502) i;
INSERT INTO employee SELECT i, 'Employee ' || i, NULLIF(i / 2, 0), '2002-08-14'::timestamp + i * interval '30 days' FROM generate_series(1, 8) i;
INSERT INTO customer
SELECT i, 'First' || i, 'Last' || i, CASE WHEN i % 4 = 0 THEN 'Company ' || i END, 'c' || i || '@example.com', 3 + i % 3
FROM generate_series(1, 59) i;
INSERT INTO invoice SELECT i, 1 + i % 59, '2021-01-01'::timestamp + i * interval '1 day', (i % 25)::numeric + 0.99 FROM generate_series(1, 412) i;

CREATE INDEX album_artist_id_idx ON album (artist_id);
CREATE INDEX track_album_id_idx ON track (album_id);
ALTER TABLE album ADD FOREIGN KEY (artist_id) REFERENCES artist (artist_id);
ALTER TABLE track ADD FOREIGN KEY (album_id) REFERENCES album (album_id);
ALTER TABLE playlist_track ADD FOREIGN KEY (playlist_id) REFERENCES playlist (playlist_id);
ALTER TABLE playlist_track ADD FOREIGN KEY (track_id) REFERENCES track (track_id);
ALTER TABLE employee ADD FOREIGN KEY (reports_to) REFERENCES employee (employee_id);
ALTER TABLE customer ADD FOREIGN KEY (support_rep_id) REFERENCES employee (employee_id);
ALTER TABLE invoice ADD FOREIGN KEY (customer_id) REFERENCES customer (customer_id);
