import java.nio.ByteBuffer;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/** The bare job of job.py on Kafka Streams: a processor with a persistent store, as its documentation writes it. */
public final class BareJob implements Processor<byte[], byte[], byte[], byte[]> {
    private static final String USERS = "users";
    private static final int STATE_BYTES = 210;

    private ProcessorContext<byte[], byte[]> context;
    private KeyValueStore<byte[], byte[]> users;

    @Override
    public void init(final ProcessorContext<byte[], byte[]> context) {
        this.context = context;
        this.users = context.getStateStore(USERS);
    }

    @Override
    public void process(final Record<byte[], byte[]> event) {
        final byte[] before = users.get(event.key());
        final long count = before == null ? 1 : ByteBuffer.wrap(before).getLong() + 1;
        users.put(event.key(), ByteBuffer.allocate(STATE_BYTES).putLong(count).put(event.value()).array());
        context.forward(event.withValue(ByteBuffer.allocate(Long.BYTES).putLong(count).array()));
    }

    /** Arguments: broker, source, output, application id, state folder, guarantee, threads. */
    public static void main(final String[] arguments) throws InterruptedException {
        final Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[3]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[4]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, arguments[5]);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, arguments[6]);
        settings.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put("auto.offset.reset", "earliest");

        final StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(Stores.keyValueStoreBuilder(
            Stores.persistentKeyValueStore(USERS), Serdes.ByteArray(), Serdes.ByteArray()));
        builder.<byte[], byte[]>stream(arguments[1]).process(BareJob::new, USERS).to(arguments[2]);

        final KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        final CountDownLatch ended = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close();
            ended.countDown();
        }));
        streams.start();
        ended.await();
    }
}
