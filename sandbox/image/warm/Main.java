import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.*;
import java.util.stream.Collectors;

/** Loads the classes that small programs commonly use, so that the image's archive holds them. */
public class Main {
    record Pair(int number, String text) {}

    interface Shape { double area(); }

    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        String line = in.readLine();
        StringTokenizer tokens = new StringTokenizer(line);
        Scanner scanner = new Scanner(line);
        while (scanner.hasNext()) {
            if (scanner.hasNextInt()) scanner.nextInt(); else scanner.next();
        }
        Map<String, List<Integer>> sorted = new TreeMap<>();
        Map<String, Integer> counts = new HashMap<>();
        for (int i = 0; i < 20; i++) {
            sorted.computeIfAbsent("k" + i % 3, key -> new ArrayList<>()).add(i);
            counts.merge("k" + i % 4, 1, Integer::sum);
        }
        Set<Integer> seen = new HashSet<>(List.of(1, 2));
        Deque<Integer> deque = new ArrayDeque<>();
        deque.push(seen.size());
        PriorityQueue<int[]> queue = new PriorityQueue<>((a, b) -> Integer.compare(a[0], b[0]));
        queue.add(new int[] {1});
        queue.add(new int[] {0});
        Integer[] boxed = {3, 1, 2};
        Arrays.sort(boxed, Comparator.reverseOrder());
        int[] plain = {3, 1, 2};
        Arrays.sort(plain);
        String joined = sorted.values().stream().flatMap(List::stream).filter(x -> x > 1).map(String::valueOf)
            .collect(Collectors.joining(","));
        Shape shape = () -> 1.5;
        StringBuilder text = new StringBuilder();
        text.append(joined).append(tokens.countTokens()).append(new Pair(deque.pop(), line)).append(counts);
        System.out.println(text);
        System.out.printf("%d %.2f %s%n", queue.poll()[0], shape.area(), Arrays.toString(boxed));
        System.out.println(String.format("%5d|%-5s|%x", plain[0], "a", 255));
        Thread thread = new Thread(() -> System.out.println(Math.sqrt(2)));
        thread.start();
        thread.join();
        try {
            throw new IllegalStateException("x");
        } catch (IllegalStateException e) {
            System.out.println(switch (e.getMessage()) { case "x" -> 1; default -> 2; });
        }
    }
}
